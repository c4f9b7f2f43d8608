"""Pure functions of arrays, for one image (vmap outside): boxes, matching, suppression, pooling."""
