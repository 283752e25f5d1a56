"""The style sheet of the page that `ag06 tune report` writes."""

from __future__ import annotations

STYLE = """
:root{--paper:#fbfbf9;--card:#fff;--ink:#1d2126;--soft:#5c6670;--rule:#e2e3df;--grid:#ecece8;--runs:#2f6fb3;
--tried:#c26a00;--candidate:#7a46c0;--good:#17803d;--bad:#c0272d;--band:#7a46c01f}
@media(prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1b1f24;--ink:#e6e8ea;--soft:#9aa5b0;--rule:#2d343b;
--grid:#272d33;--runs:#6cb0f5;--tried:#f0a24a;--candidate:#b792f2;--good:#5cc983;--bad:#ff7b7b;--band:#b792f226}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,"DejaVu Sans",sans-serif}
main{max-width:64rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .5rem;letter-spacing:-.01em}
h2{font-size:1.1rem;margin:0 0 .75rem}
.lead{font-size:1.1rem;margin:0 0 1.25rem;overflow-wrap:anywhere}
.lead strong{color:var(--good);font-size:1.35rem}
header dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.75rem 1.5rem;margin:0}
dt{color:var(--soft);font-size:.8rem}
dd{margin:0;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:1.25rem 1.4rem;
margin-top:1.25rem}
.note,.nothing{color:var(--soft);font-size:.87rem;margin:0 0 .75rem}
.terms{color:var(--soft);font-size:.87rem;padding-left:1.1rem;margin:.75rem 0}
figure{margin:0;overflow-x:auto;overflow-y:hidden}
figcaption{font-size:.87rem;margin-bottom:.25rem}
figcaption span{color:var(--soft);margin-left:.5rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.25rem}
.pair figure{min-width:0}
svg{display:block;width:100%;height:auto;overflow:visible}
figure svg{min-width:50rem}
.pair figure svg{min-width:25rem;max-width:36rem}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;padding:0;margin:0 0 .5rem;font-size:.82rem;
color:var(--soft)}
.legend li{display:flex;align-items:center;gap:.4rem}
.legend svg{min-width:0;width:14px;height:14px;flex:none}
.swatch-line{width:1.4rem;border-top:2.5px solid var(--runs)}
.swatch-band{width:1.2rem;height:.8rem;background:var(--band);border-radius:2px}
text{font-size:12px;fill:var(--soft);font-family:inherit}
text.strong{fill:var(--ink);font-weight:600}
text.good{fill:var(--good)}text.bad{fill:var(--bad)}
line.grid{stroke:var(--grid);stroke-width:1}
line.zero{stroke:var(--soft);stroke-width:1}
line.default{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:5 4}
line.event{stroke-width:1.5}
line.good{stroke:var(--good)}line.bad{stroke:var(--bad)}line.neutral{stroke:var(--soft)}
line.whisker{stroke-width:2}
rect.band{fill:var(--band)}
polyline.runs{fill:none;stroke:var(--runs);stroke-width:2.2;stroke-linejoin:round}
.incumbent{fill:var(--runs);opacity:.45}
.tried{fill:var(--tried)}.candidate{fill:var(--candidate)}
.breach{stroke:var(--bad);stroke-width:2}
g.good{fill:var(--good)}g.neutral{fill:var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.87rem}
th,td{text-align:left;padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{color:var(--soft);font-weight:500;white-space:nowrap}
td:first-child{white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tbody tr:last-child td{border-bottom:0}
details{margin-top:.75rem}
summary{cursor:pointer;color:var(--soft);font-size:.87rem}
details .scroll{max-height:24rem;overflow:auto;margin-top:.5rem}
.meter{display:grid;grid-template-columns:4.5rem minmax(6rem,16rem) 1fr;gap:.9rem;align-items:center;
margin-bottom:.4rem}
.bar{height:.6rem;border-radius:.3rem;background:var(--grid);overflow:hidden}
.bar i{display:block;height:100%;background:var(--tried)}
@media print{section{break-inside:avoid}body{background:#fff}}
"""
