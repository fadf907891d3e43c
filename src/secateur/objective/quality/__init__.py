"""What is measured of a network on some samples: loss, accuracy, a metric of the user's own."""
