//! Which layers something is done to.

use crate::config;
use crate::error::Result;
use crate::source::layout::authors_paths;
use crate::weight::Weight;
use aquatint::error::Error;
use globset::{Glob, GlobMatcher};
use regex::{Regex, RegexBuilder};

/// Most bytes of a compiled regular expression.
const MAX_REGEX: usize = 1 << 20;

/// Which layers of the denoisers something is done to.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Layers {
    /// All of them.
    #[default]
    All,
    /// Those whose path a glob matches.
    Glob(String),
    /// Those in whose path one of these regular expressions finds something.
    Regex(Vec<String>),
    /// Those whose path has the components of one of these in a row, as ViDiT-Q lists layers.
    Components(Vec<String>),
}

impl Layers {
    /// In words, after a verb; nothing for all.
    pub(super) fn describe(&self) -> String {
        match self {
            Layers::All => String::new(),
            Layers::Glob(glob) => format!(" at {glob}"),
            Layers::Regex(list) | Layers::Components(list) => format!(" at {}", list.join(", ")),
        }
    }

    /// Ready to match; `option` is what errors name.
    ///
    /// # Errors
    /// If it is no glob or no regular expression.
    pub(super) fn compile(&self, option: &str) -> Result<Matcher> {
        Ok(match self {
            Layers::All => Matcher::All,
            Layers::Glob(glob) => {
                let refuse = |e: globset::Error| Error::request(option, "a glob of layers' paths", e.kind());
                Matcher::Glob(Glob::new(glob).map_err(refuse)?.compile_matcher())
            }
            Layers::Regex(list) => {
                let regex = |text: &String| RegexBuilder::new(text).size_limit(MAX_REGEX).build();
                let refuse = |_| Error::request(option, "regular expressions", list.join(", "));
                Matcher::Regex(list.iter().map(regex).collect::<std::result::Result<_, _>>().map_err(refuse)?)
            }
            Layers::Components(list) => Matcher::Components(list.clone()),
        })
    }
}

/// [`Layers`], ready to match.
pub(super) enum Matcher {
    All,
    Glob(GlobMatcher),
    Regex(Vec<Regex>),
    Components(Vec<String>),
}

impl Matcher {
    /// Whether the layer of `weight` is among them, by one of its names.
    pub(super) fn is_match(&self, weight: &Weight) -> bool {
        let named = |layer: &str| match self {
            Matcher::All => true,
            Matcher::Glob(glob) => glob.is_match(layer),
            Matcher::Regex(list) => list.iter().any(|regex| regex.is_match(layer)),
            Matcher::Components(list) => list.iter().any(|parts| config::has_components(layer, parts)),
        };
        let layer = weight.layer();
        named(&layer) || weight.copied_layers().any(named) || authors_paths(&layer).iter().any(|path| named(path))
    }
}
