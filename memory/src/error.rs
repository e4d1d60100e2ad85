//! What errors say of themselves.

/// Gives an error type `Display` and `Error`, and `From` for each error that it passes on.
macro_rules! messages {
    ($error:ident { $($variant:ident $(($inner:ident $(: $source:ty)?))? => $text:literal,)* }) => {
        impl core::fmt::Display for $error {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self {
                    $(Self::$variant $(($inner))? => write!(f, $text),)*
                }
            }
        }

        impl core::error::Error for $error {}

        $($($(
            impl From<$source> for $error {
                fn from(error: $source) -> Self {
                    Self::$variant(error)
                }
            }
        )?)?)*
    };
}

pub(crate) use messages;
