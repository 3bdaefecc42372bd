//! Enumerations of settings that are told apart by their key `name` in a recipe.

use serde::de::{DeserializeOwned, Error};
use toml::{Table, Value};

/// Declares an enumeration of settings, one row each, that all have a trait: its variants, their names in recipes, their
/// list and the way to the trait. A new one is a file with its settings and a row here.
macro_rules! table {
    (
        $(#[$about:meta])*
        $kind:ident: dyn $behaviour:ident { $($(#[$doc:meta])* $value:ident($settings:ty) = $name:literal,)+ }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(tag = "name")]
        pub enum $kind {
            $($(#[$doc])* #[serde(rename = $name)] $value($settings),)+
        }

        impl $kind {
            /// The names in recipes, in the order of the table.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// Every one with its default settings.
            pub fn all() -> Vec<Self> {
                vec![$(Self::$value(<$settings>::default())),+]
            }

            /// Its name in recipes.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$value(_) => $name),+ }
            }

            /// What it does.
            pub fn get(&self) -> &dyn $behaviour {
                match self { $(Self::$value(settings) => settings),+ }
            }
        }
    };
}
pub(super) use table;

/// Reads the keys that a table around one of these enumerations leaves to it. Without a `name` they are those of the
/// `usual` one. `siblings` are the keys of the table around, for the message about a key that nobody knows.
pub(super) fn read<T: DeserializeOwned, E: Error>(mut rest: Table, usual: &str, siblings: &[&str]) -> Result<T, E> {
    rest.entry("name").or_insert_with(|| Value::String(usual.to_owned()));
    Value::Table(rest).try_into().map_err(|error: toml::de::Error| {
        let mut message = error.message().trim().to_owned();
        if message.starts_with("unknown field") {
            let known = message.contains("expected");
            for (index, key) in siblings.iter().enumerate() {
                message.push_str(if index == 0 && !known { ", expected one of " } else { ", " });
                message.push_str(&format!("`{key}`"));
            }
        }
        E::custom(message)
    })
}
