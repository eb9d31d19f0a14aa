//! What is seen in pictures: whether they show what was asked for, and how their features are spread.

mod captions;
mod classifier;
mod colours;
mod frechet;
mod inception_score;
mod kernel;
mod reference;
mod tensors;

pub use captions::{Attributes, Captions, STYLES};
pub use classifier::Classifier;
pub use colours::{COLOURS, Colours, read_colours};
pub use frechet::{Gaussian, Spread, bias};
pub use inception_score::Probabilities;
pub use kernel::{KernelReference, SUBSET, SUBSETS};
pub use reference::Reference;

use crate::protocol::Protocol;
use aquatint::{Error, Model, Result};
use std::path::Path;

/// Letters that captions name: A to Z.
const LETTERS: usize = 26;

/// Who reads pictures.
pub struct Scorer {
    classifier: Classifier,
    reference: Option<Reference>,
}

/// What is asked for of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A class by its label.
    Class(u32),
    /// What a caption names.
    Caption(Attributes),
}

/// What was read in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Per criterion, whether it is what was asked for.
    pub right: Vec<bool>,
    /// The classifier's features.
    pub features: Vec<f32>,
    /// Its outputs.
    pub logits: Vec<f32>,
}

impl Scorer {
    /// Reads a classifier (`conv1`, `conv2`.. of 3x3 and stride 2, `fc1`, `fc2`), and of `features`, if given, `mean`
    /// `(d)` and `covariance` `(d, d)` of its features of true pictures.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read; [`Error::Request`] if it has not these tensors in shapes that go together.
    pub fn open(classifier: &Path, features: Option<&Path>) -> Result<Self> {
        let read = |path: &Path| std::fs::read(path).map_err(Error::io("read", path));
        let classifier = Classifier::new(&classifier.display().to_string(), &read(classifier)?)?;
        let reference = features
            .map(|path| Reference::new(&path.display().to_string(), &read(path)?, classifier.features()))
            .transpose()?;
        Ok(Scorer { classifier, reference })
    }

    /// The features of true pictures.
    pub fn reference(&self) -> Option<&Reference> {
        self.reference.as_ref()
    }

    /// Classes whose probabilities make an Inception score.
    pub(crate) fn inception_classes(&self) -> Option<usize> {
        None
    }

    /// What people should know of distances of so many pictures' features.
    pub(crate) fn notes(&self, pictures: usize) -> Vec<String> {
        let Some(reference) = &self.reference else { return Vec::new() };
        let d = reference.gaussian().features();
        let few = (pictures <= d).then(|| {
            format!(
                "{pictures} images have a singular covariance of {d} features: their Fréchet distance is too large, and comparable \
                 with those of as many images only; {} or more are usual",
                5 * d
            )
        });
        reference.note().map(str::to_owned).into_iter().chain(few).collect()
    }

    /// Refuses pictures that the classifier cannot read, and captions that do not say what there is to see.
    pub(crate) fn check<D: AsRef<[u8]>>(
        &self,
        size: [usize; 2],
        model: &Model<'_, D>,
        protocol: &Protocol,
    ) -> Result<()> {
        if self.reference.is_some() && protocol.scored < 2 {
            let expected = "at least 2 images for the spread of their features";
            return Err(Error::request("score-n", expected, protocol.scored));
        }
        self.classifier.check(size, model.picture_channels())?;
        let outputs = self.classifier.outputs();
        match (&protocol.captions, &model.classes) {
            (Some(captions), _) => {
                captions.check()?;
                if outputs != LETTERS && outputs != LETTERS + STYLES.len() {
                    let expected = format!("{LETTERS} letters, or these and {} styles", STYLES.len());
                    return Err(Error::request("outputs of the classifier", expected, outputs));
                }
            }
            (None, Some(classes)) => {
                // Output k is class k: there is one for each that is asked for.
                let asked = (0..protocol.scored).map(|image| protocol.class(image, classes) as usize);
                if let Some(class) = asked.max().filter(|&class| class >= outputs) {
                    let expected = format!("one for each class up to {class}");
                    return Err(Error::request("outputs of the classifier", expected, outputs));
                }
            }
            (None, None) => {
                return Err(Error::request("score-n", "0 for a model without classes and prompts", protocol.scored));
            }
        }
        Ok(())
    }

    /// What is asked for of an image.
    pub(crate) fn asked<D>(&self, image: usize, model: &Model<'_, D>, protocol: &Protocol) -> Asked {
        match (&protocol.captions, &model.classes) {
            (Some(captions), _) => Asked::Caption(captions.asked(image)),
            (None, Some(classes)) => Asked::Class(protocol.class(image, classes)),
            (None, None) => unreachable!("checked before images are scored"),
        }
    }

    /// Names of what is read in pictures, in the order of marks.
    pub(crate) fn criteria(&self, protocol: &Protocol) -> Vec<&'static str> {
        match &protocol.captions {
            None => vec!["class"],
            Some(_) if self.classifier.outputs() == LETTERS => vec!["letter", "ink", "background", "all"],
            Some(_) => vec!["letter", "ink", "background", "all", "style"],
        }
    }

    /// Reads a picture `(height, width, channels)` in 0..1.
    pub(crate) fn mark(&self, picture: &[f32], size: [usize; 2], asked: Asked) -> Mark {
        let (features, logits) = self.classifier.read(picture, size);
        let right = match asked {
            Asked::Class(class) => vec![largest(&logits) == class as usize],
            Asked::Caption(attributes) => {
                let letter = largest(&logits[..LETTERS]) == attributes.letter;
                let seen = read_colours(picture, size);
                let colours = [seen.ink == attributes.colours.ink, seen.background == attributes.colours.background];
                let style = logits.get(LETTERS..).filter(|logits| !logits.is_empty());
                let style = style.map(|logits| largest(logits) == attributes.style);
                [letter, colours[0], colours[1], letter && colours[0] && colours[1]].into_iter().chain(style).collect()
            }
        };
        Mark { right, features, logits }
    }
}

/// The index of the largest value, the first of several.
fn largest(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}
