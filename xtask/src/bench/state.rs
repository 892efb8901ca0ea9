//! Whole tables of the kernel, read by the agent's sources and by the usual
//! tools. The example of the agent's crate measures; here it is put in a table.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::megabytes;
use super::table::{Line, Samples, draw};
use crate::interrupt;
use crate::output::Output;
use crate::shell::{self, build_release, target};

const EXAMPLE: &str = "bench_state";

/// What is read, with how many entries, and in words.
const TABLES: [(&str, u32, &str); 6] = [
    ("routes", 500_000, "500,000 routes"),
    ("rules", 20_000, "20,000 rules in 1,000 chains"),
    ("rules", 100_000, "100,000 rules in 1,000 chains"),
    ("connections", 100_000, "100,000 connections"),
    ("connections", 1_000_000, "1,000,000 connections"),
    ("sets", 65_000, "201 sets, one with 65,000 members"),
];

/// What the example prints. Runs are paired: one of ours, one of the usual tool.
#[derive(Deserialize, Serialize)]
struct Document {
    table: String,
    size: u32,
    usual_tool: String,
    ours: Vec<Cost>,
    usual: Vec<Cost>,
    /// Both without reading anything.
    idle: Idle,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
struct Idle {
    ours: Cost,
    usual: Cost,
}

/// What one run took.
#[derive(Clone, Copy, Deserialize, Serialize)]
struct Cost {
    ms: f64,
    rss_bytes: u64,
}

/// Builds the example.
pub(super) fn build() -> Result<()> {
    build_release("the benchmark", &["-p", "overlaywatch", "--example", EXAMPLE])
}

/// Measures and prints.
pub(super) fn bench(output: Output) -> Result<()> {
    let mut documents = Vec::new();
    for (table, size, words) in TABLES {
        interrupt::check()?;
        eprintln!("{words}: filling a table and reading it in turns");
        let mut example = shell::root_command(target()?.join("release/examples").join(EXAMPLE))?;
        example.args(["compare", table, "--size", &size.to_string()]);
        let text = shell::output(&mut example)?;
        let document: Document =
            serde_json::from_str(&text).with_context(|| format!("what {EXAMPLE} printed"))?;
        let lines = lines(&document);
        if output == Output::Text {
            let pairs = document.ours.len();
            println!("{words}, {pairs} pairs beside `{}`\n", document.usual_tool);
            println!("{}", draw(&lines));
        }
        documents.push(json!({ "measured": document, "lines": lines }));
    }
    if output == Output::Json {
        println!("{:#}", json!({ "bench": "state", "tables": documents }));
    }
    Ok(())
}

fn lines(document: &Document) -> Vec<Line> {
    let samples =
        |of: &dyn Fn(&Cost) -> f64, costs: &[Cost]| Samples::new(costs.iter().map(of).collect());
    let time = |cost: &Cost| cost.ms;
    let memory = |cost: &Cost| megabytes(cost.rss_bytes);
    let idle = |cost: Cost| Samples::new(vec![memory(&cost)]);
    // Each pair met the same machine, so pairs are compared, not medians.
    let ratios = |of: &dyn Fn(&Cost) -> f64| {
        let pairs = document.ours.iter().zip(&document.usual);
        Samples::new(pairs.map(|(ours, usual)| of(ours) / of(usual)).collect())
    };
    vec![
        Line::median("ours, ms", &samples(&time, &document.ours), None),
        Line::median("the usual tool, ms", &samples(&time, &document.usual), None),
        Line::median("time, ours / usual tool", &ratios(&time), Some(1.0)),
        Line::median("ours, MB", &samples(&memory, &document.ours), None),
        Line::median("the usual tool, MB", &samples(&memory, &document.usual), None),
        Line::median("memory, ours / usual tool", &ratios(&memory), Some(1.0)),
        Line::median("ours, before it reads, MB", &idle(document.idle.ours), None),
        Line::median("the usual tool, before it reads, MB", &idle(document.idle.usual), None),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_compared() {
        let document = r#"{
            "table": "rules", "size": 20000, "usual_tool": "nft list ruleset",
            "ours": [{"ms": 100.0, "rss_bytes": 4000000}, {"ms": 300.0, "rss_bytes": 4000000},
                     {"ms": 110.0, "rss_bytes": 5000000}],
            "usual": [{"ms": 500.0, "rss_bytes": 40000000}, {"ms": 600.0, "rss_bytes": 40000000},
                      {"ms": 550.0, "rss_bytes": 50000000}],
            "idle": {"ours": {"ms": 1.0, "rss_bytes": 3000000},
                     "usual": {"ms": 2.0, "rss_bytes": 1000000}}
        }"#;
        let lines = lines(&serde_json::from_str(document).unwrap());
        let figures: Vec<_> = lines.iter().map(|line| line.value.unwrap()).collect();
        assert_eq!(figures, [110.0, 550.0, 0.2, 4.0, 40.0, 0.1, 3.0, 1.0]);
        assert_eq!(lines[2].spread, Some([0.2, 0.5]));
    }
}
