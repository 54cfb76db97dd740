"""What this machine is and reaches: probes, rates, roofline."""
