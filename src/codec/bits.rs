//! Code widths and how each is cut into bit planes.

use std::fmt;

/// Width of a weight code in bits: 2, 3, 4, 5, 6 or 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bits(u8);

impl Bits {
    /// Every width, narrowest first.
    pub const ALL: [Bits; 6] = [Bits(2), Bits(3), Bits(4), Bits(5), Bits(6), Bits(8)];

    /// The width of `bits` bits, if the codec has it.
    pub fn new(bits: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|b| u32::from(b.0) == bits)
    }

    /// The width as a number.
    pub fn get(self) -> u8 {
        self.0
    }

    /// Number of distinct codes, `2^bits`.
    pub fn levels(self) -> usize {
        1 << self.0
    }

    /// Widths of the bit planes that hold a code, low bits first; their sum is the width.
    pub fn planes(self) -> &'static [u8] {
        match self.0 {
            2 => &[2],
            3 => &[2, 1],
            4 => &[4],
            5 => &[4, 1],
            6 => &[4, 2],
            _ => &[8],
        }
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
