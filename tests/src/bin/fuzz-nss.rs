//! `fuzz-nss SECONDS MODULE.so [START]`: looks up what nobody thought of, and compares. See
//! `tests/src/nss_fuzz.rs`.

use std::path::Path;
use std::time::{Duration, Instant};
use unbit_tests::nss::{Guarded, Module};
use unbit_tests::nss_fuzz::{Random, seeds};
use unbit_tests::second_name;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [seconds, module, start @ ..] = &arguments[..] else {
        return Err("usage: fuzz-nss SECONDS MODULE.so [START]".into());
    };
    let end = Instant::now() + Duration::from_secs(seconds.parse()?);
    // Another start each time: what one night does not find, another may. A failure says its input,
    // which becomes a seed.
    let clock = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
    let start = start.first().map_or(Ok(clock), |start| start.parse())?;
    println!("fuzz-nss: start {start}");

    let (module, mut memory, mut random) = (Module::open(module), Guarded::page(), Random(start | 1));
    let on_a_node = Path::new("/unbit");
    let _names = on_a_node.exists().then(|| [second_name("web1", "30001"), second_name("_", "30000")]);
    let seeds = seeds(if on_a_node.exists() { on_a_node } else { Path::new(".") });
    let mut count = 0u64;
    while Instant::now() < end {
        for _ in 0..1000 {
            let input = random.mutate(&seeds);
            input.check(module, &mut memory, random.below(200));
            count += 1;
        }
    }
    println!("fuzz-nss: {count} inputs, all answered by the rules");
    Ok(())
}
