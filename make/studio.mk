# The browser that the studio's tests look with: Debian's Chromium, driven by Playwright.
AS_ROOT = $(if $(filter-out 0,$(shell id -u)),sudo)

.PHONY: chromium
chromium: ## Chromium through apt, where it is missing, for the tests of the studio
	command -v chromium || command -v chromium-browser || { $(AS_ROOT) apt-get update -qq && \
	  $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; }

# Asked for together, the tests wait for the browser.
unit: $(filter chromium,$(MAKECMDGOALS))
