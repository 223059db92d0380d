# For login shells; other processes have PATH from the image.
export PATH="/opt/htc/bin:$PATH"
