"""Language models behind one protocol, and the tiny models this project trains itself."""
