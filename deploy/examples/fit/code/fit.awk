# Mean and width of what generate.awk printed.
{ n++; s += $1; q += $1 * $1 }
END {
	if (n == 0) { print "no events" > "/dev/stderr"; exit 1 }
	m = s / n
	printf "mean  %.3f\nsigma %.3f\nevents %d\n", m, sqrt(q / n - m * m), n
}
