//! Tokens: who holds one owns a range of what an allocator hands out.

/// A token for a range of units of `$home`. `$joined` says what range two of them make, `$release` how one
/// goes back.
macro_rules! token {
    (
        $(#[$doc:meta])*
        $token:ident: $range:ident of $home:ident,
        $(#[$merge:meta])* merge $joined:expr,
        drop $release:expr
    ) => {
        $(#[$doc])*
        pub struct $token {
            range: $range,
            home: Option<&'static $home>,
        }

        static_assertions::assert_not_impl_any!($token: Clone, core::ops::DerefMut);

        impl $token {
            /// A token of nothing.
            pub const fn empty() -> Self {
                Self { range: $range::empty(), home: None }
            }

            $(#[$merge])*
            pub fn merge(&mut self, other: Self) -> Result<(), Self> {
                let joined: fn(&$range, &$range) -> Option<$range> = $joined;
                match joined(&self.range, &other.range) {
                    Some(range) if self.home.is_none() || other.home.is_none() || self.is_of(other.home) => {
                        self.home = self.home.or(other.home);
                        self.range = range;
                        core::mem::forget(other);
                        Ok(())
                    }
                    _ => Err(other),
                }
            }

            pub(crate) fn is_of(&self, home: Option<&$home>) -> bool {
                self.home.zip(home).is_some_and(|(own, home)| core::ptr::eq(own, home))
            }
        }

        impl core::ops::Deref for $token {
            type Target = $range;

            fn deref(&self) -> &$range {
                &self.range
            }
        }

        impl Drop for $token {
            fn drop(&mut self) {
                let release: fn(&'static $home, &$range) = $release;
                if let Some(home) = self.home.filter(|_| !self.range.is_empty()) {
                    release(home, &self.range);
                }
            }
        }

        impl core::fmt::Debug for $token {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{:?} (allocated)", self.range)
            }
        }
    };
}

pub(crate) use token;
