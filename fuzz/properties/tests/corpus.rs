//! Replays the corpora of fuzz/corpus without a fuzzer.

use properties::ALL;
use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// More is no corpus for a tree, but a fuzzer's (`cargo fuzz cmin`).
const MAX_BYTES: u64 = 300 * 1024;

fn fuzz() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn files(directory: PathBuf) -> Vec<PathBuf> {
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_property_holds_for_its_corpus() {
    let mut failed = Vec::new();
    for (name, property) in ALL {
        let inputs = files(fuzz().join("corpus").join(name));
        assert!(inputs.len() >= 3, "corpus/{name} has only {} inputs", inputs.len());
        for input in inputs {
            let data = fs::read(&input).unwrap();
            if catch_unwind(|| property(&data)).is_err() {
                failed.push(input); // what does not hold has been printed
            }
        }
        property(b""); // a directory cannot say what an empty file is for
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_target_has_a_property_and_a_small_corpus() {
    let names: BTreeSet<String> = ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    let named = |directory: &str| -> BTreeSet<String> {
        let stems = files(fuzz().join(directory)).into_iter();
        stems.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!((named("targets"), named("corpus")), (names.clone(), names));
    let inputs = ALL.iter().flat_map(|(name, _)| files(fuzz().join("corpus").join(name)));
    let size: u64 = inputs.map(|input| fs::metadata(input).unwrap().len()).sum();
    assert!(size < MAX_BYTES, "the corpora have {size} bytes");
}
