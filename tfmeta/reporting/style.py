"""How the page looks: light and dark, wide and narrow, and on paper."""

CSS = """
:root{color-scheme:light dark;--ink:#1c2024;--soft:#5b6470;--paper:#fff;--plane:#f4f6f8;
--line:#d5dae0;--accent:#2b5f94;--right:#1b7837;--wrong:#b3172a;--mark:#fff3cd;--tile:#fff}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e4e7eb;--soft:#9aa4b0;--paper:#14171a;
--plane:#1d2226;--line:#363d45;--accent:#8fbfec;--right:#6fce8a;--wrong:#ff8b94;--mark:#4a3f14;
--tile:#0c0e10}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem clamp(.8rem,3vw,2.5rem) 4rem;max-width:75rem;
background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1,h2,h3,h4{line-height:1.25;overflow-wrap:anywhere}
h1{margin:0 0 .6rem;font-size:1.7rem}
h2{margin:2.6rem 0 .8rem;padding-top:.8rem;border-top:1px solid var(--line);font-size:1.3rem}
h3{margin:1.4rem 0 .4rem;font-size:1.05rem}
h4{margin:.8rem 0 .3rem;font-size:.95rem}
small{color:var(--soft);font-weight:normal;font-size:.85em}
a{color:var(--accent)}
.facts{display:flex;flex-wrap:wrap;gap:.2rem 1.4rem;margin:0 0 1rem}
.facts div{display:flex;gap:.4rem}
dt{color:var(--soft)}
dt::after{content:":"}
dd{margin:0;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(15rem,100%),1fr));gap:.8rem}
.card{padding:.8rem 1rem;border:1px solid var(--line);border-radius:8px;background:var(--plane)}
.card h3{margin:0}
.card p{margin:0}
.score{font-size:1.6rem;font-variant-numeric:tabular-nums}
.warning{padding:.5rem .8rem;border-left:4px solid var(--wrong);background:var(--plane)}
.note,figcaption{max-width:48rem;margin:.4rem 0;color:var(--soft);font-size:.9rem}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:1.2rem 0 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;margin:.4rem 0;font-size:.92rem}
th,td{padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--line);text-align:left;
vertical-align:top}
thead th{color:var(--soft);font-weight:normal;vertical-align:bottom}
tbody th{font-weight:normal;min-width:8rem;max-width:26rem;overflow-wrap:break-word}
.numbers{font-variant-numeric:tabular-nums}
.numbers td{white-space:nowrap}
.numbers small{margin-left:.5em}
.differ tbody tr{background:var(--mark)}
.differ th:first-child{padding-left:.5rem}
figure{margin:.6rem 0}
.pictures{display:flex;flex-wrap:wrap;gap:1rem 2rem;align-items:flex-start}
.picture{max-width:100%;overflow-x:auto}
.picture img{display:block;height:auto;max-width:100%}
details{margin:.6rem 0}
summary{cursor:pointer;color:var(--accent)}
.way{display:grid;grid-template-columns:11rem auto 1fr;gap:0 1rem;padding:.5rem 0;
border-bottom:1px solid var(--line)}
.way h4{margin:0;font-weight:normal}
.tiles{display:flex;flex-wrap:wrap;gap:.4rem}
.support{padding-right:1rem;border-right:1px solid var(--line)}
.tile{display:flex;flex-direction:column;width:min-content;min-width:56px;font-size:.75rem;
line-height:1.3}
.tile span{overflow-wrap:break-word}
.hard .tile{width:118px}
.shown{display:flex;gap:2px;border:2px solid transparent;background:var(--tile)}
.tile .shown{border-color:var(--line)}
.right .shown{border-color:var(--right)}
.wrong .shown{border-color:var(--wrong);border-style:dashed}
.shown img{display:block;width:56px;height:56px;object-fit:contain}
.pixels{image-rendering:pixelated}
.text{width:11rem;padding:.2rem .3rem;overflow-wrap:anywhere}
b.right{color:var(--right)}
b.wrong{color:var(--wrong)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;padding:.7rem .9rem;border-radius:6px;
background:var(--plane);font-size:.85rem}
pre code{display:block;padding-left:2em;text-indent:-2em}
@media (max-width:40rem){
body{font-size:15px}
.way{grid-template-columns:1fr;gap:.3rem}
.support{border:0}
.support::before{content:"shown";width:100%;color:var(--soft);font-size:.75rem}
.way .tiles:last-child::before{content:"asked";width:100%;color:var(--soft);font-size:.75rem}
}
@media print{
:root{color-scheme:light}
body{max-width:none;padding:0;font-size:10pt}
nav,.screen{display:none}
.numbers td{white-space:normal}
h2,h3,h4{break-after:avoid}
figure,.way,.card,tr,.hard{break-inside:avoid}
.scroll,.picture{overflow:visible}
.picture img{max-width:100%}
details::details-content{content-visibility:visible}
}
"""
