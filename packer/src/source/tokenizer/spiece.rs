//! The file of a SentencePiece model: a message of protocol buffers, of which little counts here.
//!
//! A message is a row of fields: a number and a wire type, then a variable-length integer (type 0), eight bytes (1), a
//! length and as many bytes (2), or four bytes (5). The numbers are those of `sentencepiece_model.proto`.

/// What counts of a SentencePiece model.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Model {
    /// Pieces, by token.
    pub pieces: Vec<Piece>,
    /// The normalization of texts; empty if there is none.
    pub charsmap: Vec<u8>,
    /// The algorithm that makes pieces; 1, unigram, where the file says nothing.
    pub algorithm: Option<u64>,
    /// Whether a space is put before a text; it is where the file says nothing.
    pub dummy_prefix: Option<u64>,
}

/// A piece of text.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    /// Logarithm of how likely it is.
    pub score: f32,
    pub kind: PieceKind,
}

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceKind {
    /// Text.
    Normal,
    /// What is unknown.
    Unknown,
    /// Control tokens, such as the end of a text.
    Control,
    /// Text that is found before the rest is split.
    UserDefined,
    /// Nothing: no text has it.
    Unused,
    /// A byte of what has no piece.
    Byte,
}

impl Model {
    /// Reads the bytes of a `.model` file.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Model::default();
        for field in Fields(bytes) {
            match field.ok_or("fields of protocol buffers, which end within the file")? {
                (1, Wire::Bytes(piece)) => {
                    let at = model.pieces.len();
                    model.pieces.push(Piece::parse(piece).ok_or_else(|| format!("a text and a score in piece {at}"))?);
                }
                (2, Wire::Bytes(trainer)) => model.algorithm = last_integer(trainer, 3),
                (3, Wire::Bytes(normalizer)) => {
                    for field in Fields(normalizer).flatten() {
                        if let (2, Wire::Bytes(charsmap)) = field {
                            model.charsmap = charsmap.to_vec();
                        }
                    }
                    model.dummy_prefix = last_integer(normalizer, 3);
                }
                _ => {}
            }
        }
        Ok(model)
    }
}

impl Piece {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(text)) => piece.text = String::from_utf8(text.to_vec()).ok()?,
                (2, Wire::Four(score)) => piece.score = f32::from_le_bytes(score),
                (3, Wire::Integer(kind)) => {
                    piece.kind = match kind {
                        1 => PieceKind::Normal,
                        2 => PieceKind::Unknown,
                        3 => PieceKind::Control,
                        4 => PieceKind::UserDefined,
                        5 => PieceKind::Unused,
                        6 => PieceKind::Byte,
                        _ => return None,
                    }
                }
                _ => {}
            }
        }
        piece.score.is_finite().then_some(piece)
    }
}

/// The integer of field `number`; the last one counts.
fn last_integer(message: &[u8], number: u64) -> Option<u64> {
    let integers = Fields(message).flatten().filter_map(|field| match field {
        (n, Wire::Integer(value)) if n == number => Some(value),
        _ => None,
    });
    integers.last()
}

/// A field's contents.
enum Wire<'a> {
    Integer(u64),
    Bytes(&'a [u8]),
    Four([u8; 4]),
    Eight,
}

/// The fields of a message; none is what is no field, and the last.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn integer(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(bytes)
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let key = self.integer()?;
        let contents = match key & 7 {
            0 => Wire::Integer(self.integer()?),
            1 => {
                self.take(8)?;
                Wire::Eight
            }
            2 => {
                let length = usize::try_from(self.integer()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Four(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((key >> 3, contents))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::{Model, Piece, PieceKind};

    /// A message by hand: the pieces "ab" of score -1.5 and "</s>" of kind 3, a trainer of algorithm 1, and a normalizer of
    /// charsmap "xy" that puts a space before texts; with a field of eight bytes and an integer of two that count nothing.
    const MODEL: &[u8] =
        b"\x0a\x09\x0a\x02ab\x15\x00\x00\xc0\xbf\x0a\x08\x0a\x04</s>\x18\x03\x12\x05\x18\x01\x20\xac\x02\
        \x1a\x0f\x12\x02xy\x18\x01\x09ABCDEFGH";

    #[test]
    fn what_counts_is_read() {
        let piece = |text: &str, score, kind| Piece { text: text.into(), score, kind };
        let pieces = vec![piece("ab", -1.5, PieceKind::Normal), piece("</s>", 0.0, PieceKind::Control)];
        let expected = Model { pieces, charsmap: b"xy".to_vec(), algorithm: Some(1), dummy_prefix: Some(1) };
        assert_eq!(Model::parse(MODEL), Ok(expected));
        assert_eq!(Model::parse(b""), Ok(Model::default()));
    }

    #[test]
    fn damage_is_an_error_or_another_model() {
        for end in 1..MODEL.len() {
            let _ = Model::parse(&MODEL[..end]);
        }
        for at in 0..MODEL.len() {
            for byte in [0, 0x7f, 0xff, MODEL[at] ^ 1] {
                let mut damaged = MODEL.to_vec();
                damaged[at] = byte;
                let _ = Model::parse(&damaged);
            }
        }
        let ends = Err("fields of protocol buffers, which end within the file".to_owned());
        assert_eq!(Model::parse(&MODEL[..5]), ends);
        assert_eq!(Model::parse(&[0xff; 11]), ends, "an integer without end");
        assert_eq!(
            Model::parse(b"\x0a\x05\x15\x00\x00\xc0\x7f"),
            Err("a text and a score in piece 0".to_owned()),
            "NaN"
        );
    }
}
