"""Colours of plots: Okabe and Ito's, told apart by most eyes, and in grey print."""

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#9A9A9A"
