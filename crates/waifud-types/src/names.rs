//! The names of enums whose variants have no fields.

/// Gives each variant its name: `as_str`, and `Display`, which pads it to the requested width.
macro_rules! names {
    ($(#[$about:meta])* $kind:ident { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $kind {
            $(#[$about])*
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        impl ::std::fmt::Display for $kind {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
