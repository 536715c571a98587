# A release: one version, stated in runtime/atelier/__init__.py, rendered into all that names it.
RELEASE_CHECKS ?= test

.PHONY: version release
version: install ## write the version into manifests and the Containerfile; templates and pipelines too
	$(BIN)/python make/release.py
	$(MAKE) templates pipeline

release: install ## make VERSION=1.2.0: bump, changelog, render, check, commit and tag; pushes nothing
	@test -n "$(VERSION)" || { echo "make release VERSION=1.2.0" >&2; exit 1; }
	@test -z "$$(git status --porcelain)" || { echo "commit what has changed first" >&2; exit 1; }
	$(BIN)/python make/release.py $(VERSION)
	$(MAKE) templates pipeline
	$(MAKE) $(RELEASE_CHECKS)
	git commit --all --message "chore: release $(VERSION)"
	git tag --annotate "$(VERSION)" --message "Atelier $(VERSION)"
	@echo "$(VERSION) is committed and tagged; nothing was pushed"
