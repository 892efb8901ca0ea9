//! The first complete snapshot of a large route table beside `ip route show`.
//! The example of the agent's crate measures; here it is only put in a table.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::table::{Line, Samples, draw};
use crate::output::Output;
use crate::shell::{self, build_release, target};

const EXAMPLE: &str = "bench_routes";

/// What the example prints. Runs are paired: one of ours, one of the usual tool.
#[derive(Deserialize, Serialize)]
struct Document {
    routes: u64,
    usual_tool: String,
    ours_ms: Vec<f64>,
    usual_ms: Vec<f64>,
    rss_bytes: u64,
}

/// Builds the example.
pub(super) fn build() -> Result<()> {
    build_release("the benchmark", &["-p", "overlaywatch", "--example", EXAMPLE])
}

/// Measures and prints.
pub(super) fn bench(output: Output) -> Result<()> {
    eprintln!("filling a table and reading it in turns (a minute or two)");
    let mut example = shell::root_command(target()?.join("release/examples").join(EXAMPLE))?;
    let text = shell::output(&mut example)?;
    let document: Document =
        serde_json::from_str(&text).with_context(|| format!("what {EXAMPLE} printed"))?;
    let lines = lines(&document);
    let Document { routes, usual_tool, ours_ms, .. } = &document;
    match output {
        Output::Text => {
            let runs = ours_ms.len();
            println!("{routes} routes, {runs} pairs of runs beside `{usual_tool}`\n");
            print!("{}", draw(&lines));
        }
        Output::Json => {
            println!("{:#}", json!({ "bench": "routes", "measured": document, "lines": lines }));
        }
    }
    Ok(())
}

fn lines(document: &Document) -> Vec<Line> {
    let Document { ours_ms, usual_ms, rss_bytes, .. } = document;
    // Each pair met the same machine, so pairs are compared, not medians.
    let ratios = ours_ms.iter().zip(usual_ms).map(|(ours, usual)| ours / usual).collect();
    let resident = Samples::new(vec![super::megabytes(*rss_bytes)]);
    vec![
        Line::median("ours, ms", &Samples::new(ours_ms.clone()), None),
        Line::median("the usual tool, ms", &Samples::new(usual_ms.clone()), None),
        Line::median("ours / usual tool", &Samples::new(ratios), Some(1.0)),
        Line::median("resident memory at its highest, MB", &resident, None),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_compared() {
        let document = r#"{
            "routes": 500000, "usual_tool": "ip route show", "runs": 3,
            "ours_ms": [100.0, 300.0, 110.0], "usual_ms": [500.0, 600.0, 550.0],
            "rss_bytes": 11000000
        }"#;
        let lines = lines(&serde_json::from_str(document).unwrap());
        let figures: Vec<_> = lines.iter().map(|line| line.value.unwrap()).collect();
        assert_eq!(figures, [110.0, 550.0, 0.2, 11.0]);
        assert_eq!(lines[2].spread, Some([0.2, 0.5]));
    }
}
