"""An async-native SDK for Mixpanel. The names below are the public ones; everything else may change."""
