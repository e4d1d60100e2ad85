//! What errors say of themselves.

/// Gives an error type `Display` and `Error`, and `From` for each error that it passes on. For the crates of
/// this project: what it takes may change.
#[doc(hidden)]
#[macro_export]
macro_rules! messages {
    ($error:ident { $(
        $(#[$attribute:meta])*
        $variant:ident $(($($inner:ident $(: $source:ty)?),+))? $({ $($field:ident),+ })? => $text:literal,
    )* }) => {
        impl core::fmt::Display for $error {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self {
                    $(
                        $(#[$attribute])*
                        Self::$variant $(($($inner),+))? $({ $($field),+ })? => write!(f, $text),
                    )*
                }
            }
        }

        impl core::error::Error for $error {}

        $($($($(
            impl From<$source> for $error {
                fn from(error: $source) -> Self {
                    Self::$variant(error)
                }
            }
        )?)+)?)*
    };
}

pub(crate) use messages;
