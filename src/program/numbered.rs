//! Enums that stand in the file as numbers: one list gives the enum, its numbers, its names and the table of both in
//! the specification.

/// A choice that the file keeps as a number.
pub trait Numbered: Copy + Sized + 'static {
    /// All choices, in the order of their numbers.
    const LIST: &'static [Self];
    /// What the choices are, as the head of their table.
    const TITLE: &'static str;

    /// The number in the file. Never given to another choice.
    fn number(self) -> u32;

    /// The name in messages, listings and tables.
    fn name(self) -> &'static str;

    /// The choice's documentation.
    fn meaning(self) -> &'static str;

    /// The choice with this number.
    fn of_number(number: u32) -> Option<Self> {
        Self::LIST.iter().copied().find(|choice| choice.number() == number)
    }
}

/// Defines an enum with a number, a name and a documentation for each item, as `Item = number "name",`.
/// With `: Default` after the enum's name, the first item is the default.
macro_rules! numbered {
    (
        $title:literal
        $(#[$outer:meta])*
        pub enum $Kind:ident $(: $Default:ident)? {
            $($(#[doc = $doc:literal])+ $Item:ident = $number:literal $name:literal,)+
        }
    ) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $Kind {
            $($(#[doc = $doc])+ $Item = $number,)+
        }

        impl $Kind {
            /// All of them, in the order of their numbers in the file.
            pub const ALL: [$Kind; [$($number),+].len()] = [$($Kind::$Item),+];

            /// The name in messages, listings and the specification's tables.
            pub fn name(self) -> &'static str {
                match self {
                    $($Kind::$Item => $name,)+
                }
            }
        }

        $(impl $Default for $Kind {
            fn default() -> Self {
                Self::ALL[0]
            }
        })?

        impl $crate::program::Numbered for $Kind {
            const LIST: &'static [Self] = &$Kind::ALL;
            const TITLE: &'static str = $title;

            fn number(self) -> u32 {
                self as u32
            }

            fn name(self) -> &'static str {
                $Kind::name(self)
            }

            fn meaning(self) -> &'static str {
                match self {
                    $($Kind::$Item => concat!($($doc),+),)+
                }
            }
        }
    };
}
pub(crate) use numbered;
