//! Counts, and an example of every finding.

use crate::SLOW;
use crate::examine::Outcome;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where the panics of a mutation were, first to last.
#[derive(Clone)]
pub struct Panics(Arc<Mutex<Vec<String>>>);

impl Panics {
    /// Keeps the places and messages of all panics from now on, and prints none.
    pub fn catch() -> Self {
        let places: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = places.clone();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let payload = info.payload();
            let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
            let message: String = text.unwrap_or_default().chars().take(200).collect();
            if let Ok(mut seen) = seen.lock() {
                seen.push(format!("{place}: {message}"));
            }
        }));
        Panics(places)
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic holds it"))
    }
}

/// What has been found.
#[derive(Default)]
pub struct Report {
    tried: u64,
    opened: u64,
    sound: u64,
    ran: u64,
    other: u64,
    emulated: u64,
    slow: u64,
    holes: u64,
    panics: u64,
    /// By the finding: how often, and the first mutation that showed it.
    findings: BTreeMap<String, (u64, String)>,
}

impl Report {
    /// Counts what became of the mutation `what`; none is a panic.
    pub fn add(&mut self, outcome: Option<Outcome>, took: Duration, what: &str, panics: &Panics) {
        self.tried += 1;
        let found = panics.take().into_iter().next();
        match &outcome {
            None => self.panics += 1,
            Some(outcome) => {
                let counts = [
                    (&mut self.opened, outcome.opened),
                    (&mut self.sound, outcome.sound),
                    (&mut self.ran, outcome.ran),
                    (&mut self.other, outcome.other),
                    (&mut self.emulated, outcome.emulated),
                    (&mut self.holes, outcome.hole.is_some()),
                ];
                counts.into_iter().for_each(|(count, happened)| *count += u64::from(happened));
            }
        }
        let hole = outcome.and_then(|outcome| outcome.hole).map(|hole| format!("hole: {hole}"));
        let slow = (took > SLOW).then(|| format!("slow: {} s", took.as_secs()));
        self.slow += u64::from(slow.is_some());
        // The place is the finding; messages tell numbers.
        let panic =
            found.map(|text| (text.split(": ").next().unwrap_or_default().to_owned(), format!("{text} <- {what}")));
        let others = hole.into_iter().chain(slow).map(|finding| (finding, what.to_owned()));
        for (finding, example) in panic.into_iter().chain(others) {
            self.findings.entry(finding).or_insert((0, example)).0 += 1;
        }
    }

    /// Panics and holes.
    pub fn faults(&self) -> u64 {
        self.panics + self.holes
    }

    /// All counts in a line.
    pub fn line(&self, seed: u64, took: Duration) -> String {
        let Report { tried, opened, sound, ran, other, emulated, slow, holes, panics, .. } = self;
        format!(
            "{tried} mutations from seed {seed} in {} s: {opened} opened, {sound} sound, {ran} ran ({other} made something \
             else, {emulated} also on the emulated device), {panics} panics, {holes} holes, {slow} slow",
            took.as_secs()
        )
    }

    /// A line per finding: how often, and an example.
    pub fn details(&self) -> Vec<String> {
        self.findings.iter().map(|(finding, (n, example))| format!("{n} x {finding}\n    {example}")).collect()
    }
}
