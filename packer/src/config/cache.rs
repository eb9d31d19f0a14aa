//! Several configurations in one file, as Qua2SeDiMo's sampling script leaves them (`quant_cache.pkl`): a list of maps that
//! have a `config` and what was measured with it. `FILE:17` takes one by its number, `FILE:best` the one of the lowest FID, and
//! `FILE:NAME` one that has a name.

use super::ConfigError;
use std::path::Path;

/// Configurations that a message lists.
const SHOWN: usize = 3;

/// Which configuration of a file is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted<'a> {
    /// The only one.
    Only,
    /// That of this number, from 0 on.
    Number(usize),
    /// That of the lowest FID.
    Best,
    /// That of this name.
    Name(&'a str),
}

/// What was measured with a configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Distance to real images, where it is known.
    pub fid: Option<f64>,
    /// Average bits of a weight, where they are known.
    pub bits: Option<f64>,
}

impl Sample {
    /// Notes what the entry called `key` says, if it is a measurement.
    pub fn note(&mut self, key: &str, value: f64) {
        if key.starts_with("FID") && value.is_finite() {
            self.fid = Some(value);
        } else if key == "avg_bits" && value.is_finite() {
            self.bits = Some(value);
        }
    }

    fn words(&self) -> String {
        let fid = self.fid.map(|fid| format!("FID {fid:.2}"));
        let bits = self.bits.map(|bits| format!("{bits:.2} bits"));
        let words: Vec<_> = [fid, bits].into_iter().flatten().collect();
        if let Some(name) = &self.name {
            return format!(" ({name})");
        }
        if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
    }
}

/// The file that the argument `arg` names, and what in it: `FILE`, `FILE:N`, `FILE:best` or `FILE:NAME`. None if there is no
/// such file.
pub(super) fn locate(arg: &str) -> Option<(&Path, Wanted<'_>)> {
    if Path::new(arg).exists() {
        return Some((Path::new(arg), Wanted::Only));
    }
    let (file, which) = arg.rsplit_once(':').filter(|(file, _)| Path::new(file).is_file())?;
    let wanted = match (which, which.parse()) {
        ("best", _) => Wanted::Best,
        (_, Ok(number)) => Wanted::Number(number),
        _ => Wanted::Name(which),
    };
    Some((Path::new(file), wanted))
}

/// The number of the configuration that is `wanted` of a list of them.
///
/// # Errors
/// If it is not there, or if there are several and none is named: then with some of them to choose from.
pub(super) fn choose(origin: &str, samples: &[Sample], wanted: Wanted) -> Result<usize, ConfigError> {
    let fid = |&i: &usize| samples[i].fid.unwrap_or(f64::INFINITY);
    let mut ranked: Vec<usize> = (0..samples.len()).collect();
    ranked.sort_by(|a, b| fid(a).total_cmp(&fid(b)));
    let count = samples.len();
    let refuse = |reason: String| Err(ConfigError::Syntax { origin: origin.into(), reason });
    match (wanted, ranked.first()) {
        (_, None) => refuse("a configuration is expected, this list is empty".into()),
        (Wanted::Number(number), _) if number < count => Ok(number),
        (Wanted::Number(number), _) => refuse(format!("number 0 to {} is expected, got {number}", count - 1)),
        (Wanted::Name(name), _) => {
            let named = samples.iter().position(|sample| sample.name.as_deref() == Some(name));
            let names: Vec<_> = samples.iter().filter_map(|sample| sample.name.as_deref()).collect();
            let got = super::spec::shorten(name);
            named.map_or_else(
                || match names.is_empty() {
                    true => refuse(format!("after the colon a number or `best` is expected, got `{got}`")),
                    false => refuse(format!("after the colon one of {} is expected, got `{got}`", names.join(", "))),
                },
                Ok,
            )
        }
        (Wanted::Only, Some(_)) if count == 1 => Ok(0),
        (Wanted::Best, Some(&best)) if count == 1 || fid(&best).is_finite() => Ok(best),
        (Wanted::Best, _) => refuse(format!("none of its {count} configurations has an FID; take one by its number")),
        (Wanted::Only, _) => {
            let shown: Vec<_> = ranked.iter().take(SHOWN).map(|&i| format!("{i}{}", samples[i].words())).collect();
            let first = if fid(&ranked[0]).is_finite() { "best first" } else { "the first" };
            let rest = if count > SHOWN { ", ..." } else { "" };
            let list = format!("{first}: {}{rest}", shown.join(", "));
            let last = count - 1;
            let or = if samples.iter().all(|sample| sample.name.is_some()) { "its name" } else { ":best" };
            refuse(format!("{count} configurations; to take one, write :0 to :{last} or {or} behind the name; {list}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(fid: f64, bits: f64) -> Sample {
        let mut sample = Sample::default();
        sample.note("FID-GT-1k", fid);
        sample.note("avg_bits", bits);
        sample.note("bops", 1e12);
        sample
    }

    #[test]
    fn one_of_several_is_named_or_best() {
        let samples = [sample(95.0, 4.1), sample(f64::NAN, 3.0), sample(93.25, 3.9), sample(93.25, 3.8)];
        let choose = |wanted| choose("c.pkl", &samples, wanted).map_err(|e| e.to_string());
        assert_eq!(choose(Wanted::Best), Ok(2), "the first of the best, and no NaN");
        assert_eq!(choose(Wanted::Number(1)), Ok(1));
        assert_eq!(choose(Wanted::Number(4)), Err("c.pkl: number 0 to 3 is expected, got 4".into()));
        assert_eq!(
            choose(Wanted::Only).unwrap_err(),
            "c.pkl: 4 configurations; to take one, write :0 to :3 or :best behind the name; best first: \
             2 (FID 93.25, 3.90 bits), 3 (FID 93.25, 3.80 bits), 0 (FID 95.00, 4.10 bits), ..."
        );
    }

    #[test]
    fn lists_without_scores_have_no_best() {
        let none = [Sample::default(), Sample::default()];
        assert_eq!(choose("c", &none, Wanted::Number(1)).unwrap(), 1);
        assert!(choose("c", &none, Wanted::Best).unwrap_err().to_string().contains("none of its 2"));
        assert!(choose("c", &none, Wanted::Only).unwrap_err().to_string().ends_with("the first: 0, 1"));
        assert_eq!([Wanted::Only, Wanted::Best].map(|w| choose("c", &none[..1], w).unwrap()), [0, 0]);
        assert!(choose("c", &[], Wanted::Best).is_err());
    }
}
