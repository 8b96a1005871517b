"""
What the stand-ins for Pulumi provider plugins share.

A stand-in describes what it carries as a `package.Package`; `process.main` then serves it to the
Pulumi engine, which attaches to it through ``PULUMI_DEBUG_PROVIDERS=NAME:PORT``. Arguments and
outputs come from the plugin's SDK (`schema`), what the real plugin does with them from tables
(`behaviour`); checking, comparing and keeping state follow from the two.
"""
