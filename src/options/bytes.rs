//! Numbers of bytes as people write them.

/// A number of bytes such as `2G`, `800M`, `64k` or `1000`; units are powers of 1000.
///
/// # Errors
/// What is expected, in a sentence.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let expected = || format!("a number of bytes such as 2G, 800M or 64k expected, not `{text}`");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().trim_end_matches('b') {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        _ => return Err(expected()),
    };
    match digits.parse::<f64>() {
        Ok(n) if n > 0.0 && n * unit < 1e18 => Ok((n * unit) as usize),
        _ => Err(expected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1000() {
        for (text, bytes) in [("1000", 1000), ("64k", 64_000), ("1.5GB", 1_500_000_000), ("2t", 2_000_000_000_000)] {
            assert_eq!(parse_bytes(text), Ok(bytes));
        }
        for text in ["", "G", "-1G", "0", "2X", "NaN", "9999999T"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
