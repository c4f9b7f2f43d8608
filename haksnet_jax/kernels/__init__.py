"""Operations with a form for each platform: one name, the same result."""
