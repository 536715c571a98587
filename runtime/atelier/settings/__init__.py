"""All settings of a server: one class, one field an environment variable, in groups."""

from atelier.settings.fields import Settings, Switch
from atelier.settings.loading import current_model, load_settings
from atelier.settings.rows import SettingRow, ignored, rows

__all__ = [
    "SettingRow",
    "Settings",
    "Switch",
    "current_model",
    "ignored",
    "load_settings",
    "rows",
]
