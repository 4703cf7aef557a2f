"""A TCP proxy in front of a database that loses the answer to a statement: the server did it, nobody hears of it."""

import selectors
import socket
import threading


class Proxy:
    """Passes bytes both ways until it is armed; then cuts a connection between a statement and its answer."""

    def __init__(self, target: tuple[str, int] | str, *, cut_after: bytes, every: int) -> None:
        self._target = target
        self._pattern = cut_after
        self._every = every
        self._lock = threading.Lock()
        self._seen = 0
        self.cuts = 0
        self.most = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def arm(self, cuts: int) -> None:
        """Cut from now on, so many times."""
        self.most = cuts

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, self._connect() as server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            try:
                while True:
                    for key, _ in selector.select():
                        data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                        if not data:
                            return
                        if key.fileobj is server:
                            client.sendall(data)
                            continue
                        server.sendall(data)
                        if self._must_cut(data):
                            # The server has answered, so it is done.
                            server.recv(65536)
                            with self._lock:
                                self.cuts += 1
                            return
            except OSError:
                return

    def _connect(self) -> socket.socket:
        if isinstance(self._target, tuple):
            return socket.create_connection(self._target)
        found = socket.socket(socket.AF_UNIX)
        found.connect(self._target)
        return found

    def _must_cut(self, data: bytes) -> bool:
        if self._pattern not in data:
            return False
        with self._lock:
            self._seen += 1
            return self.cuts < self.most and self._seen % self._every == 0

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()
