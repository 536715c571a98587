# setup.sh and `atelier deploy` against an API server of the tests, which is no kinder than a real one.
.PHONY: test-cluster
test-cluster: install ## manifests, setup.sh and atelier deploy against the fake API server
	PYTHONPATH=runtime:pipelines:. $(BIN)/python -m pytest -q tests/deploy tests/manifests
