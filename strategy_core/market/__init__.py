"""Where candles come from and when markets are open; never what is decided on them."""
