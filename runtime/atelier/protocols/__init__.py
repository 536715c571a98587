"""Translations between wire formats and requests; nothing here touches a tensor."""
