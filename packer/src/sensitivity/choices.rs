//! The file that holds a model in all choices: f32 in its first phase, the environment in the next one, then choice after choice.

use super::partial::Partial;
use super::record::Record;
use super::units::{matcher, spelled};
use super::{Event, Settings};
use crate::config::QConfig;
use crate::emit::{Coded, Options, coded_layers, explain, pack};
use crate::error::Result;
use aquatint::error::Error;
use aquatint::raw::format::Packed;
use aquatint::raw::format::meta::SourceMeta;
use aquatint::raw::mmap::{self, FileBytes};
use aquatint::raw::program::MAX_PHASES;
use globset::GlobMatcher;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

/// The phase in which everything is f32.
pub(super) const FLOAT: usize = 0;
/// The precision of that.
const F32: &str = "f32";

/// The precisions that are tried, and the one around them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choices {
    /// As they are spelled in full, `w4a8:mse`.
    pub names: Vec<String>,
    /// The precision of the layers that are not tried.
    pub environment: String,
}

impl Choices {
    /// Those of `settings`.
    ///
    /// # Errors
    /// If one is no precision, is there twice, or there are none or too many.
    pub fn new(settings: &Settings) -> Result<Self> {
        let environment = precision("environment", &settings.environment)?;
        let mut names: Vec<String> = Vec::new();
        for text in &settings.choices {
            let name = precision("choices", text)?;
            if names.contains(&name) {
                return Err(Error::request("choices", "each precision once", format!("{text} again")).into());
            }
            names.push(name);
        }
        // f32 and an environment have a phase, too.
        if names.is_empty() || names.len() > MAX_PHASES - 2 {
            let expected = format!("1 to {} precisions", MAX_PHASES - 2);
            return Err(Error::request("choices", expected, names.len()).into());
        }
        Ok(Choices { names, environment })
    }

    /// Those that a record was measured in.
    pub fn of(record: &Record) -> Self {
        Choices { names: record.choices.clone(), environment: record.conditions.environment.clone() }
    }

    /// Whether layers that are not tried are f32.
    pub fn float_environment(&self) -> bool {
        self.environment == F32
    }

    /// The phase of the environment.
    pub fn environment_phase(&self) -> usize {
        if self.float_environment() { FLOAT } else { 1 }
    }

    /// The phase of a choice.
    pub fn phase(&self, choice: usize) -> usize {
        self.environment_phase() + 1 + choice
    }

    /// The configuration of the file, of the SPECs that the choices make of layers, by choice. When its phases begin is of no
    /// meaning: none is ever run as a stretch of time.
    fn config(&self, layers: &[Vec<(String, String)>]) -> String {
        let environment = (!self.float_environment()).then(|| format!("default = \"{}\"\n", self.environment));
        let entries = |layers: &Vec<(String, String)>| {
            let entry = |(layer, spec): &(String, String)| format!("{layer:?} = \"{spec}\"\n");
            format!("[phases.layers]\n{}", layers.iter().map(entry).collect::<String>())
        };
        let phases: Vec<String> = environment.into_iter().chain(layers.iter().map(entries)).collect();
        let count = phases.len() + 1;
        let phase =
            |(i, what): (usize, &String)| format!("[[phases]]\nfrom = {}\n{what}", (i + 1) as f64 / count as f64);
        format!("default = \"{F32}\"\n{}", phases.iter().enumerate().map(phase).collect::<String>())
    }

    /// What each choice makes of each layer of a denoiser: what packing with it as a SPEC does, which spares the ends of a network
    /// and leaves floats to what is worked out before the steps; of layers that a glob of `named` matches, what an entry does.
    ///
    /// # Errors
    /// Those of [`explain`], and if a glob is none.
    fn layers(&self, options: &Options, named: &[String]) -> Result<Vec<Vec<(String, String)>>> {
        let globs = named.iter().map(|glob| matcher("named", glob)).collect::<Result<Vec<_>>>()?;
        let of = |name: &String| -> Result<_> {
            let plan = explain(&Options { q_config: Some(name.clone()), ..options.clone() })?;
            let mut specs: Vec<(String, String)> = Vec::new();
            for layer in plan.layers.iter().filter(|layer| layer.decided_by.is_some()) {
                let path = layer.name.split_once('/').map_or(&*layer.name, |(_, path)| path);
                // A layer of another component has this path, too: one entry is for both.
                if specs.iter().any(|(known, _)| known == path) {
                    continue;
                }
                let bits = (layer.activation_bits < 32).then_some(layer.activation_bits);
                let named = globs.iter().any(|glob| glob.is_match(path));
                specs.push((path.to_owned(), if named { name.clone() } else { spelled(&layer.method, bits) }));
            }
            Ok(specs)
        };
        let layers = self.names.iter().map(of).collect::<Result<Vec<_>>>()?;
        let matched = |glob: &GlobMatcher| layers.iter().flatten().any(|(path, _)| glob.is_match(path));
        if let Some((glob, _)) = named.iter().zip(&globs).find(|(_, glob)| !matched(glob)) {
            let expected = "a glob of layers' paths";
            return Err(Error::request("named", expected, format!("{glob}, which matches none")).into());
        }
        Ok(layers)
    }

    /// Opens the file in the folder of `partial`, after packing it if it is not there.
    ///
    /// # Errors
    /// Those of packing, and if the folder has the work of another command.
    pub(super) fn open(
        &self,
        settings: &Settings,
        partial: &Partial,
        see: &mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<(Packed<FileBytes>, Option<String>)> {
        let calibration = settings.calibration.as_deref().map(hash_of).transpose()?;
        let config = partial.file("choices.toml");
        let mut options = Options {
            model: settings.model.clone(),
            refiner: settings.refiner.clone(),
            donors: settings.donors.clone(),
            overrules: settings.overrules.clone(),
            calibration: settings.calibration.clone(),
            split: settings.split.clone(),
            ..Options::default()
        };
        let text = self.config(&self.layers(&options, &settings.named)?);
        std::fs::write(&config, &text).map_err(Error::io("write", &config))?;
        options.q_config = Some(config.display().to_string());
        let Coded { sources, .. } = coded_layers(&options)?;
        let scheduler = settings.overrules.scheduler_config.as_deref().map(hash_of).transpose()?;
        let prediction = settings.overrules.prediction.map(|prediction| prediction.to_string());
        let key = key(&text, &sources, &[calibration.clone(), scheduler, prediction]);
        options.output = partial.choices(&key)?;
        if !options.output.exists() {
            pack(&options, &mut |progress| {
                see(Event::Packing(progress));
            })?;
        }
        Ok((Packed::open(&options.output)?, calibration))
    }
}

/// What tells the files of different work apart.
fn key(config: &str, sources: &[SourceMeta], rest: &[Option<String>]) -> String {
    let sources: Vec<_> = sources.iter().map(|source| (&source.file, &source.xxh3)).collect();
    let told = format!("{} {config} {sources:?} {rest:?}", env!("CARGO_PKG_VERSION"));
    format!("{:032x}", xxh3_128(told.as_bytes()))
}

/// The hash of a file's bytes.
pub(crate) fn hash_of(path: &Path) -> Result<String> {
    Ok(format!("{:032x}", xxh3_128(mmap::open(path)?.as_ref())))
}

/// A SPEC in full.
pub(crate) fn precision(option: &str, text: &str) -> Result<String> {
    let expected = "a precision such as f32, w4a8 or w4a8:kmeans";
    let refuse = |got: String| Error::request(option, expected, got);
    if QConfig::file(text).is_some_and(Path::exists) {
        return Err(refuse(format!("the file {text}")).into());
    }
    let config = QConfig::parse(text).map_err(|_| refuse(text.to_owned()))?;
    Ok(config.default().map(|spec| spec.to_string()).ok_or_else(|| refuse(text.to_owned()))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn choices(names: &[&str], environment: &str) -> Result<Choices> {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        let settings = Settings::new(PathBuf::new(), PathBuf::new());
        Choices::new(&Settings { choices: names, environment: environment.into(), ..settings })
    }

    #[test]
    fn choices_are_phases_after_the_environment() {
        let float = choices(&["w4a8", "w3a8:kmeans"], "f32").unwrap();
        assert_eq!((float.names.join(" "), float.environment_phase()), ("w4a8:mse w3a8:kmeans".into(), 0));
        assert_eq!([0, 1].map(|choice| float.phase(choice)), [1, 2]);
        let coded = choices(&["w4a8"], "w6a8").unwrap();
        assert_eq!((coded.environment_phase(), coded.phase(0)), (1, 2));
        let expected = "default = \"f32\"\n[[phases]]\nfrom = 0.3333333333333333\ndefault = \"w6a8:mse\"\n\
                        [[phases]]\nfrom = 0.6666666666666666\n[phases.layers]\n\"a.b\" = \"w4a16:mse\"\n";
        assert_eq!(coded.config(&[vec![("a.b".into(), "w4a16:mse".into())]]), expected);
    }

    #[test]
    fn what_is_no_precision_is_refused() {
        let told = |names: &[&str], environment| choices(names, environment).unwrap_err().to_string();
        assert!(told(&["w9a8"], "f32").starts_with("choices: expected a precision such as f32"));
        assert!(told(&["w4a8"], "nothing").ends_with("got nothing"));
        assert_eq!(told(&["w4a8", "w4a8:mse"], "f32"), "choices: expected each precision once, got w4a8:mse again");
        assert_eq!(told(&[], "f32"), "choices: expected 1 to 30 precisions, got 0");
    }
}
