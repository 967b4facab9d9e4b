//! The seeds of the fuzzer, and a few thousand inputs near them. `make fuzz-nss` goes on for
//! minutes.

use std::path::Path;
use unbit_tests::nss::{Guarded, Module};
use unbit_tests::nss_fuzz::{Random, seeds};
use unbit_tests::second_name;

#[test]
#[ignore = "needs the node: make test"]
fn seeds_and_their_neighbours_are_answered_by_the_rules() {
    let _names = [("web1", "30001"), ("gone", "30002"), ("chain", "web1"), ("_", "30000")]
        .map(|(name, target)| second_name(name, target));
    let (module, mut memory) = (Module::installed(), Guarded::page());
    let seeds = seeds(Path::new("/unbit"));
    assert!(seeds.len() > 80, "the witness: they were found");
    for seed in &seeds {
        for length in 0..200 {
            seed.check(module, &mut memory, length);
        }
    }
    let mut random = Random(1);
    for _ in 0..20_000 {
        random.mutate(&seeds).check(module, &mut memory, random.below(200));
    }
}
