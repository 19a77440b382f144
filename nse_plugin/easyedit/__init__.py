"""The hook points of EasyEdit: finding a checkout, registering with it, its editors and losses."""
