"""The configurations that come with the package: ``--config quickstart`` finds ``quickstart.yaml`` here."""
