"""The vendor of this database, and the portable one on the same database, keep the contract."""

from django.test import TransactionTestCase

from django_taskq.store.vendors import Vendor, vendor_for
from django_taskq.testing import StoreContract


class TestOwnVendor(StoreContract, TransactionTestCase):
    def make_vendor(self) -> Vendor:
        return vendor_for("default")


class TestPortableVendor(StoreContract, TransactionTestCase):
    def make_vendor(self) -> Vendor:
        return Vendor("default")
