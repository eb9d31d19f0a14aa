//! Tokens of a PTX text ("Syntax").

use crate::fault::ParseError;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tok {
    /// An identifier, register, directive or opcode with its modifiers.
    Word(String),
    /// An integer constant, as 64 bits.
    Int(u64),
    /// `0f...`: the bits of an f32.
    F32(u32),
    /// `0d...` or a decimal fraction: the bits of an f64.
    F64(u64),
    Text(String),
    Punct(u8),
}

#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub tok: Tok,
    pub line: u32,
    /// Byte range in the text.
    pub span: (usize, usize),
}

/// Splits `text` into tokens, dropping comments.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token>, ParseError> {
    let bytes = text.as_bytes();
    let (mut at, mut line) = (0, 1);
    let mut out = Vec::new();
    while at < bytes.len() {
        let start = at;
        let byte = bytes[at];
        let tok = match byte {
            b'\n' => {
                line += 1;
                at += 1;
                continue;
            }
            _ if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                while at < bytes.len() && bytes[at] != b'\n' {
                    at += 1;
                }
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = text[at..].find("*/").ok_or_else(|| ParseError::new(line, "unterminated comment"))?;
                line += text[at..at + end].matches('\n').count() as u32;
                at += end + 2;
                continue;
            }
            b'"' => {
                let end = text[at + 1..].find('"').ok_or_else(|| ParseError::new(line, "unterminated string"))?;
                at += end + 2;
                Tok::Text(text[start + 1..at - 1].to_string())
            }
            b'0'..=b'9' => {
                while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'.') {
                    at += 1;
                }
                number(&text[start..at])
                    .ok_or_else(|| ParseError::new(line, format!("not a number: {}", &text[start..at])))?
            }
            _ if is_word(byte) => {
                while at < bytes.len() && (is_word(bytes[at]) || bytes[at].is_ascii_digit() || colons(bytes, at)) {
                    at += if colons(bytes, at) { 2 } else { 1 };
                }
                Tok::Word(text[start..at].to_string())
            }
            b',' | b';' | b':' | b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'+' | b'-' | b'=' | b'|' | b'!' | b'@'
            | b'<' | b'>' => {
                at += 1;
                Tok::Punct(byte)
            }
            _ => return Err(ParseError::new(line, format!("unexpected character {:?}", byte as char))),
        };
        out.push(Token { tok, line, span: (start, at) });
    }
    Ok(out)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// Whether `::` followed by a word character starts at `at`, as in `.L1::no_allocate`.
fn colons(bytes: &[u8], at: usize) -> bool {
    bytes[at] == b':' && bytes.get(at + 1) == Some(&b':') && bytes.get(at + 2).is_some_and(u8::is_ascii_alphanumeric)
}

/// Integer and floating-point constants ("Constants").
fn number(text: &str) -> Option<Tok> {
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    match text.as_bytes() {
        [b'0', b'f' | b'F', ..] if text.len() == 10 => return hex(&text[2..]).map(|bits| Tok::F32(bits as u32)),
        [b'0', b'd' | b'D', ..] if text.len() == 18 => return hex(&text[2..]).map(Tok::F64),
        _ => {}
    }
    if text.contains('.') {
        return text.parse::<f64>().ok().map(|value| Tok::F64(value.to_bits()));
    }
    let digits = text.strip_suffix(['U', 'u']).unwrap_or(text);
    let value = if let Some(rest) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        u64::from_str_radix(rest, 16)
    } else if let Some(rest) = digits.strip_prefix("0b").or(digits.strip_prefix("0B")) {
        u64::from_str_radix(rest, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(&digits[1..], 8)
    } else {
        digits.parse()
    };
    value.ok().map(Tok::Int)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_and_comments() {
        let got: Vec<Tok> = tokens("@!%p1 ld.global.L1::no_allocate.b32 %r1, [%rd1+-4]; // x\n/* y\n */ $L__1:")
            .unwrap()
            .into_iter()
            .map(|token| token.tok)
            .collect();
        let word = |text: &str| Tok::Word(text.into());
        let want = vec![
            Tok::Punct(b'@'),
            Tok::Punct(b'!'),
            word("%p1"),
            word("ld.global.L1::no_allocate.b32"),
            word("%r1"),
            Tok::Punct(b','),
            Tok::Punct(b'['),
            word("%rd1"),
            Tok::Punct(b'+'),
            Tok::Punct(b'-'),
            Tok::Int(4),
            Tok::Punct(b']'),
            Tok::Punct(b';'),
            word("$L__1"),
            Tok::Punct(b':'),
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn constants() {
        assert_eq!(number("0f3F800000"), Some(Tok::F32(0x3f80_0000)));
        assert_eq!(number("0d3FF0000000000000"), Some(Tok::F64(0x3ff0_0000_0000_0000)));
        assert_eq!(number("0x1FU"), Some(Tok::Int(31)));
        assert_eq!(number("017"), Some(Tok::Int(15)));
        assert_eq!(number("0b101"), Some(Tok::Int(5)));
        assert_eq!(number("12q"), None);
        assert!(tokens("mov.b32 %r1, #").is_err());
        assert_eq!(tokens("a\n/*\n*/ b").unwrap()[1].line, 3);
    }
}
