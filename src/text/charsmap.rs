//! The normalization that a SentencePiece model carries, `precompiled_charsmap`: a trie and the texts it points to.
//!
//! ```text
//! u32 bytes of the trie | trie: u32 units | texts, each ended by a zero byte
//! ```
//!
//! The trie is a double array (Aoe 1989, in the layout of darts-clone). From unit `i` with offset `o`, the child for byte
//! `c` is unit `i ^ o ^ c`, if that has label `c`; a unit that ends a key has its value, a place among the texts, in unit
//! `i ^ o`. The library that follows it trusts these numbers, so they are proven here.

/// Why `bytes` is no charsmap that can be followed without leaving it, whatever the text.
///
/// # Errors
/// What was expected, in words.
pub fn check(bytes: &[u8]) -> Result<(), &'static str> {
    let short = "as many bytes as its length says";
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(short)?;
    let length = u32::from_le_bytes(*length) as usize;
    if !length.is_multiple_of(4) || length == 0 {
        return Err("a trie of whole units, at least one");
    }
    let (trie, texts) = rest.split_at_checked(length).ok_or(short)?;
    let texts = std::str::from_utf8(texts).map_err(|_| "texts in UTF-8")?;
    let (units, _) = trie.as_chunks::<4>();
    let unit = |i: usize| u32::from_le_bytes(units[i]);
    for i in 0..units.len() {
        let Unit { offset, ends_key, is_value } = Unit::of(unit(i));
        // Values are not walked through: no byte is their label. The root is, whatever it looks like.
        if is_value && i > 0 {
            continue;
        }
        let children = i ^ offset;
        if children | 0xff >= units.len() {
            return Err("a trie that stays within its units");
        }
        if ends_key && !texts.is_char_boundary((unit(children) & VALUE) as usize) {
            return Err("values that are places among its texts");
        }
    }
    Ok(())
}

/// Bits of a unit that are its value, if it is one.
const VALUE: u32 = 0x7fff_ffff;

/// What a unit says of its children.
struct Unit {
    offset: usize,
    ends_key: bool,
    is_value: bool,
}

impl Unit {
    /// Bit 31 marks a value, bit 8 the end of a key; the offset is in the upper 22 bits, times 256 if bit 9 is set.
    fn of(unit: u32) -> Self {
        let offset = (unit >> 10) as usize;
        let far = unit & 1 << 9 != 0;
        Unit { offset: if far { offset << 8 } else { offset }, ends_key: unit & 1 << 8 != 0, is_value: unit > VALUE }
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    /// A charsmap of 256 units that maps `a` to `texts`: the root's children begin at 0, the value of `a` is at 1.
    fn charsmap(texts: &[u8]) -> Vec<u8> {
        let mut units = [0u32; 256];
        // From unit 97 to unit 1: an offset of 96.
        units[97] = 97 | 1 << 8 | (97 ^ 1) << 10;
        units[1] = 1 << 31;
        let mut bytes = 1024u32.to_le_bytes().to_vec();
        units.iter().for_each(|unit| bytes.extend_from_slice(&unit.to_le_bytes()));
        bytes.extend_from_slice(texts);
        bytes
    }

    #[test]
    fn every_way_out_is_found() {
        let sound = charsmap("é\0".as_bytes());
        assert_eq!(check(&sound), Ok(()));
        let with = |unit: usize, value: u32| {
            let mut bytes = sound.clone();
            bytes[4 + 4 * unit..][..4].copy_from_slice(&value.to_le_bytes());
            check(&bytes)
        };
        assert_eq!(with(97, 97 | 1 << 9 | 1 << 10), Err("a trie that stays within its units"));
        assert_eq!(with(0, 256 << 10), Err("a trie that stays within its units"));
        assert_eq!(with(1, 1 << 31 | 1), Err("values that are places among its texts"));
        assert_eq!(with(1, 1 << 31 | 3), Ok(()));
        assert_eq!(with(1, 1 << 31 | 4), Err("values that are places among its texts"));
        for end in [0, 3, 4, 1027] {
            assert!(check(&sound[..end]).is_err(), "{end}");
        }
        assert_eq!(check(&charsmap(b"\xff")), Err("texts in UTF-8"));
        assert_eq!(check(&0u32.to_le_bytes()), Err("a trie of whole units, at least one"));
    }
}
