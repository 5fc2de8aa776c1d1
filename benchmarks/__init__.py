"""Speed and accuracy of vireid beside other code: `speed` measures, `tables` trains, `results` holds what was found."""
