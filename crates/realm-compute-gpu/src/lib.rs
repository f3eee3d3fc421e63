//! Realm's GPU backends.
