//! The model inside the library.

use crate::format::Packed;

/// Bytes that start on a 64-byte boundary, as the format demands.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// Letters in colour, W4A8, made to be looked at. `tests/models/glyphs.rs` proves that packing `models/glyphs` again
/// gives exactly these bytes.
static LETTERS: &Aligned<[u8]> = &Aligned(*include_bytes!("../models/glyphs-w4a8.aqt"));

/// A small model that draws letters, for examples and first tries. A program that does not call this does not carry it.
pub fn letters() -> Packed<&'static [u8]> {
    Packed::new(&LETTERS.0).expect("the bytes are those that the tests open")
}
