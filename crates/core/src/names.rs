//! Enumerations whose values have one name in files, options and messages.

/// A name that is none of an enumeration's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no {what}; known: {known}")]
pub struct UnknownName {
    /// What the enumeration is of.
    pub what: &'static str,
    /// The name that was asked for.
    pub name: String,
    /// The names that there are.
    pub known: String,
}

/// The name that a wrong one was probably meant to be, if any is alike.
///
/// ```
/// use calotype_core::names::nearest;
///
/// assert_eq!(nearest("eulr", ["ddim", "euler"]), Some("euler"));
/// assert_eq!(nearest("zzz", ["ddim", "euler"]), None);
/// ```
pub fn nearest<'n>(wrong: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    const ALIKE: f64 = 0.5;
    let scored = known.into_iter().map(|name| (strsim::normalized_damerau_levenshtein(wrong, name), name));
    scored.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// What all enumerations of [`names!`](crate::names!) offer: to parsers, help texts and completions.
pub trait Named: Copy + Send + Sync + 'static {
    /// Every value, in the order of their declaration.
    fn values() -> &'static [Self];

    /// The name in files, options and messages.
    fn own_name(self) -> &'static str;

    /// Further names that are read.
    fn other_names(self) -> &'static [&'static str];
}

/// Declares an enumeration whose values have one name in files, options and messages: `serde`, `Display`, `FromStr`,
/// `name` and `ALL`. Further names of a value, behind `|`, are read and never written.
///
/// ```
/// calotype_core::names! {
///     /// What fruit it is.
///     Fruit, "fruit" {
///         /// An apple.
///         Apple = "apple" | "pomme",
///     }
/// }
/// assert_eq!("apple".parse::<Fruit>(), Ok(Fruit::Apple));
/// assert_eq!("pomme".parse::<Fruit>().unwrap().name(), "apple");
/// assert_eq!("pear".parse::<Fruit>().unwrap_err().to_string(), "`pear` is no fruit; known: apple");
/// ```
#[macro_export]
macro_rules! names {
    ($(#[$about:meta])* $kind:ident, $what:literal { $($(#[$doc:meta])* $value:ident = $name:literal $(| $alias:literal)*,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, $crate::names::Serialize, $crate::names::Deserialize)]
        #[serde(crate = "::calotype_core::names::serde")]
        pub enum $kind {
            $($(#[$doc])* #[serde(rename = $name $(, alias = $alias)*)] $value,)+
        }

        impl $kind {
            /// Every value, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$value),+];

            /// The name in files, options and messages.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$value => $name),+ }
            }
        }

        impl $crate::names::Named for $kind {
            fn values() -> &'static [Self] {
                Self::ALL
            }

            fn own_name(self) -> &'static str {
                self.name()
            }

            fn other_names(self) -> &'static [&'static str] {
                match self { $(Self::$value => &[$($alias),*]),+ }
            }
        }

        impl ::std::fmt::Display for $kind {
            fn fmt(&self, formatter: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                formatter.pad(self.name())
            }
        }

        impl ::std::str::FromStr for $kind {
            type Err = $crate::names::UnknownName;

            fn from_str(name: &str) -> ::std::result::Result<Self, $crate::names::UnknownName> {
                match name {
                    $($name $(| $alias)* => Ok(Self::$value),)+
                    _ => Err($crate::names::UnknownName {
                        what: $what,
                        name: name.to_owned(),
                        known: Self::ALL.iter().map(|value| value.name()).collect::<Vec<_>>().join(", "),
                    }),
                }
            }
        }
    };
}

#[doc(hidden)]
pub use serde::{self, Deserialize, Serialize};
