//! What images show: prompts, classes, or ready features.

use super::MAX_IMAGES;
use super::tensors::Tensors;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::pipeline::{Prompts, Texts};
use crate::text::{PromptStyle, foreign};
use std::path::Path;

/// Images without a prompt or class, of models that name their classes: one of each, up to this many.
const CLASSES_SHOWN: usize = 64;

/// What images show.
#[derive(Clone, Debug, Default)]
pub struct PromptOptions {
    /// Prompts; of models with classes, names or numbers of classes.
    pub prompts: Vec<String>,
    /// Negative prompts: one for all images, or one per prompt.
    pub negatives: Vec<String>,
    /// Whether brackets and `BREAK` are taken literally, and what a text encoder cannot read at once is cut off.
    pub plain: bool,
    /// Classes by number or name, one image each; an entry may be a list with commas, see
    /// [`Classes::labels`](crate::model::Classes::labels).
    pub class_labels: Vec<String>,
    /// Images per prompt or class; 1 if absent.
    pub n_imgs: Option<usize>,
    /// Whether images of a model with classes show all of them that have names, or all, where nothing says which; a few if not.
    pub all_classes: bool,
}

/// The lines of the file at `path` that hold anything, a prompt or class each.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Request`] if it is not text or there is none.
pub fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let expected = "text with a prompt or class per line";
    let refuse = |got: &str| Error::request(format!("prompts {}", path.display()), expected, got);
    let text = std::str::from_utf8(&bytes).map_err(|e| refuse(&e.to_string()))?;
    let lines: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if lines.is_empty() { Err(refuse("no line that holds anything")) } else { Ok(lines) }
}

impl PromptOptions {
    /// The prompts of a request. Those in `tensors` come first; with guidance, they need negative ones.
    ///
    /// # Errors
    /// [`Error::Request`] if the model takes no such prompts, or `tensors` holds others than it needs.
    pub fn prompts<D: AsRef<[u8]>>(
        &self,
        model: &Model<'_, D>,
        tensors: Option<&mut Tensors>,
        guided: bool,
    ) -> Result<Prompts> {
        if let Some(tensors) = tensors
            && let Some(prompts) = tensors.prompts(model, guided)?
        {
            self.check_beside_tensors()?;
            return Ok(prompts);
        }
        if self.plain && model.text.is_none() {
            return Err(Error::request("plain-prompt", "a model that reads prompts", "one that does not"));
        }
        match (&model.text, &model.classes) {
            (Some(_), _) => self.texts(),
            (None, _) if !self.negatives.is_empty() => {
                Err(Error::request("negative", "a model that reads prompts", "one that does not"))
            }
            (None, Some(classes)) => {
                let mut labels = Vec::new();
                for list in &self.class_labels {
                    labels.extend(classes.labels(list)?);
                }
                for text in &self.prompts {
                    labels.push(classes.label(text)?);
                }
                if labels.is_empty() {
                    let most = if self.all_classes { usize::MAX } else { CLASSES_SHOWN };
                    labels.extend(classes.names.keys().take(most));
                }
                if labels.is_empty() && self.all_classes {
                    labels.extend((0..classes.count as u32).filter(|&label| label != classes.null));
                }
                if labels.is_empty() {
                    let expected = format!("at least one of {}", classes.expected());
                    return Err(Error::request("class-labels", expected, "none"));
                }
                let n = self.times(labels.len())?;
                Ok(Prompts::Classes(labels.iter().flat_map(|&l| std::iter::repeat_n(l, n)).collect()))
            }
            (None, None) => match self.class_labels.iter().chain(&self.prompts).next() {
                Some(text) => Err(Error::class("none: this model has no classes", format!("`{text}`"))),
                None => Ok(Prompts::Unconditional(self.times(1)?)),
            },
        }
    }

    /// Refuses prompts beside those of tensors.
    fn check_beside_tensors(&self) -> Result<()> {
        let given = [
            ("prompt", !self.prompts.is_empty()),
            ("negative", !self.negatives.is_empty()),
            ("class-labels", !self.class_labels.is_empty()),
            ("plain-prompt", self.plain),
            ("n-imgs", self.n_imgs.is_some_and(|n| n != 1)),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(Error::request(*option, "none beside the prompts or classes of --inputs", "one")),
            None => Ok(()),
        }
    }

    /// What of the prompts other programs would act on, each once.
    pub fn warnings(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for text in self.prompts.iter().chain(&self.negatives).filter(|_| !self.plain) {
            for part in foreign(text) {
                let warning = format!("{:?} {}", part.text, part.meaning);
                if !found.contains(&warning) {
                    found.push(warning);
                }
            }
        }
        found
    }

    fn texts(&self) -> Result<Prompts> {
        if let Some(class) = self.class_labels.first() {
            return Err(Error::request("class-labels", "none: this model reads prompts", format!("`{class}`")));
        }
        if self.prompts.is_empty() {
            return Err(Error::request("prompt", "what the images show", "none"));
        }
        let repeat = |texts: &[String]| -> Result<Vec<String>> {
            let n = self.times(texts.len())?;
            Ok(texts.iter().flat_map(|t| std::iter::repeat_n(t.clone(), n)).collect())
        };
        let negatives = if self.negatives.len() > 1 { repeat(&self.negatives)? } else { self.negatives.clone() };
        let negatives = negatives.into_iter().map(Some).collect();
        let style = if self.plain { PromptStyle::Plain } else { PromptStyle::Weighted };
        Ok(Prompts::Texts(Texts { prompts: repeat(&self.prompts)?, negatives, style }))
    }

    /// Images of each of `n` prompts.
    fn times(&self, n: usize) -> Result<usize> {
        let (asked, most) = (self.n_imgs.unwrap_or(1), MAX_IMAGES / n.max(1));
        if (1..=most).contains(&asked) {
            Ok(asked)
        } else {
            Err(Error::request("n-imgs", format!("1 to {most}"), asked))
        }
    }
}
