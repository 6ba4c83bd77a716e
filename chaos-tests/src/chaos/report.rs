//! A run on one page: JSON for machines, HTML without anything from elsewhere for people.

use std::fmt::Write as _;

use super::run::Report;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}\
.ok{color:#176b2c}.bad{color:#a4161a;font-weight:600}pre{white-space:pre-wrap;background:#f5f5f5;padding:.6rem}svg{width:100%;height:160px}";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The page.
pub fn html(report: &Report) -> String {
    let (class, verdict) =
        if report.holds() { ("ok", "every invariant holds") } else { ("bad", "invariants are violated") };
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Chaos run {seed}</title><style>{STYLE}</style>\
         <h1>Chaos run {seed}: <span class=\"{class}\">{verdict}</span></h1>\
         <p>{clients} clients, {seconds:.0} s, {attempts} attempts, of which {open} were not answered or left open.</p>\
         <pre>{repeat}</pre>",
        seed = report.seed,
        clients = report.clients,
        seconds = report.seconds,
        attempts = report.attempts,
        open = report.open,
        repeat = escaped(&report.repeat),
    );
    page.push_str("<h2>Invariants</h2><table><tr><th>invariant<th>checked<th>verdict</tr>");
    for invariant in &report.invariants {
        let verdict = match invariant.violations.as_slice() {
            [] => "<span class=\"ok\">holds</span>".to_owned(),
            violations => {
                let lines: Vec<String> = violations.iter().map(|line| escaped(line)).collect();
                format!("<span class=\"bad\">violated</span><pre>{}</pre>", lines.join("\n"))
            }
        };
        // Writing to a string does not fail.
        let unjudged = invariant.unjudged;
        let _ = write!(
            page,
            "<tr><td>{}<td>{}, {unjudged} not<td>{verdict}</tr>",
            invariant.name, invariant.checked
        );
    }
    page.push_str("</table><h2>Timeline</h2>");
    page.push_str(&chart(report));
    page.push_str("<h2>Faults</h2><table><tr><th>from, s<th>to, s<th>nemesis<th>what was done</tr>");
    for fault in &report.faults {
        let _ = write!(
            page,
            "<tr><td>{:.1}<td>{:.1}<td>{}<td>{}</tr>",
            fault.begin_s,
            fault.end_s,
            fault.nemesis,
            escaped(&fault.what)
        );
    }
    page.push_str("</table></html>\n");
    page
}

/// Answers of each second above the line, what was left open below, faults behind.
fn chart(report: &Report) -> String {
    let width = report.timeline.len().max(1) as f64;
    let most =
        report.timeline.iter().map(|second| second.answered.max(second.open)).max().unwrap_or(1).max(1);
    let mut svg = format!("<svg viewBox=\"0 0 {width} 160\" preserveAspectRatio=\"none\">");
    for fault in &report.faults {
        let (x, w) = (fault.begin_s, (fault.end_s - fault.begin_s).max(0.2));
        let _ = write!(svg, "<rect x=\"{x:.1}\" y=\"0\" width=\"{w:.1}\" height=\"160\" fill=\"#f6d9d5\"/>");
    }
    for (at, second) in report.timeline.iter().enumerate() {
        let up = 110.0 * second.answered as f64 / most as f64;
        let down = 40.0 * second.open as f64 / most as f64;
        let _ = write!(
            svg,
            "<rect x=\"{at}\" y=\"{y:.1}\" width=\"0.9\" height=\"{up:.1}\" fill=\"#31708f\"><title>second {at}: {answered} answered, \
             {open} open, slowest {slowest:.0} ms</title></rect>\
             <rect x=\"{at}\" y=\"115\" width=\"0.9\" height=\"{down:.1}\" fill=\"#a4161a\"/>",
            y = 112.0 - up,
            answered = second.answered,
            open = second.open,
            slowest = second.slowest_ms,
        );
    }
    svg.push_str(
        "</svg><p>Answered attempts of each second in blue, those left open in red, faults behind them.</p>",
    );
    svg
}
