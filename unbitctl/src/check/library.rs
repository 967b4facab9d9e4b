//! Our libraries: installed where they are looked for, and loaded without an error.

use crate::node::Node;
use crate::program;
use crate::report::Finding;

/// Whether a library of ours is there, and its own dynamic linker can load it.
pub fn check(node: &Node, check: &'static str, why: &'static str, path: &str, mend: String) -> Finding {
    if !node.has(path) {
        return Finding::fail(check, why, format!("there is no {path}"), mend);
    }
    if !program::possible(node) {
        return Finding::not_applicable(check, why, format!("{path}: root is needed to see whether it can be loaded"));
    }
    match program::cannot_load(node, path) {
        Ok(None) => Finding::ok(check, why, format!("{path} can be loaded")),
        Ok(Some(complaint)) => Finding::fail(check, why, format!("{path} cannot be loaded: {complaint}"), mend),
        Err(error) => Finding::not_applicable(check, why, format!("{path} cannot be tried: {error:#}")),
    }
}
