# Prints n numbers that are normally distributed around mean.
BEGIN {
	srand(42)
	for (i = 0; i < n; i++) {
		u = 1 - rand()
		print mean + 2.4 * sqrt(-2 * log(u)) * cos(6.28318530718 * rand())
	}
}
