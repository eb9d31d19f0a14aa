//! What other programs would act on in a prompt, and this one reads as words.

/// A part of a prompt that means something elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign<'a> {
    /// The part.
    pub text: &'a str,
    /// What is made of it here, for people.
    pub meaning: &'static str,
}

const NETWORK: &str = "is read as words: no adapter is applied";
const EDITING: &str = "is read as words: the prompt does not change on the way";
const COMPOSING: &str = "is read as a word: prompts are not composed";
const EMBEDDING: &str = "is read as words: embeddings are part of the packed file and called by their tokens";

/// The parts of `prompt` that the web UI, ComfyUI and their kin act on: `<lora:name:1>`, `[from:to:0.5]`, `[one|other]`,
/// `AND`, `embedding:name`. In the order of their kinds.
pub fn foreign(prompt: &str) -> Vec<Foreign<'_>> {
    let mut found = Vec::new();
    let mut add = |text, meaning| found.push(Foreign { text, meaning });
    for (start, _) in prompt.match_indices('<') {
        let rest = &prompt[start..];
        let network = ["<lora:", "<lyco:", "<hypernet:"].iter().any(|begin| starts_with(rest, begin));
        if let Some(end) = rest.find('>').filter(|_| network) {
            add(&rest[..=end], NETWORK);
        }
    }
    for group in groups(prompt) {
        let inner = &group[1..group.len() - 1];
        let number = |text: &str| !text.trim().is_empty() && text.trim().parse::<f64>().is_ok();
        if inner.contains('|') || inner.rsplit_once(':').is_some_and(|(_, last)| number(last)) {
            add(group, EDITING);
        }
    }
    let word = |c: char| c.is_alphanumeric() || c == '_';
    for (start, text) in prompt.match_indices("AND") {
        if !prompt[..start].ends_with(word) && !prompt[start + text.len()..].starts_with(word) {
            add(text, COMPOSING);
        }
    }
    for (start, begin) in prompt.match_indices("embedding:") {
        let name = &prompt[start + begin.len()..];
        let end = name.find(|c: char| !(word(c) || matches!(c, '-' | '.' | '/'))).unwrap_or(name.len());
        if end > 0 && !prompt[..start].ends_with(word) {
            add(&prompt[start..start + begin.len() + end], EMBEDDING);
        }
    }
    found
}

/// Whether `text` begins with `begin`, in any case.
fn starts_with(text: &str, begin: &str) -> bool {
    text.get(..begin.len()).is_some_and(|text| text.eq_ignore_ascii_case(begin))
}

/// The outermost groups in square brackets that are closed and not escaped.
fn groups(prompt: &str) -> Vec<&str> {
    let (mut groups, mut depth, mut start, mut escaped) = (Vec::new(), 0usize, 0, false);
    for (at, c) in prompt.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => {
                if depth == 0 {
                    start = at;
                }
                depth += 1;
            }
            ']' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    groups.push(&prompt[start..=at]);
                }
            }
            _ => {}
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::foreign;

    #[test]
    fn what_other_programs_act_on_is_found() {
        let texts = |prompt| foreign(prompt).into_iter().map(|part| part.text).collect::<Vec<_>>();
        assert_eq!(texts("a cat <lora:x-y:0.8>, <LyCO:z>"), ["<lora:x-y:0.8>", "<LyCO:z>"]);
        assert_eq!(
            texts("[red:blue:0.5] [x:3] [a::0.2] [[in] out:1]"),
            ["[red:blue:0.5]", "[x:3]", "[a::0.2]", "[[in] out:1]"]
        );
        assert_eq!(texts("a [red|blue] horse AND a sea"), ["[red|blue]", "AND"]);
        assert_eq!(
            texts("embedding:Easy_Negative.pt, (embedding:b:1.2)"),
            ["embedding:Easy_Negative.pt", "embedding:b"]
        );
        for plain in [
            "a [less] (more:1.3) BREAK x",
            r"\[a|b\]",
            "BRAND SAND and <3 > x",
            "[a:b]",
            "[open|",
            "my embedding: x",
            "",
        ] {
            assert!(foreign(plain).is_empty(), "{plain}");
        }
    }
}
