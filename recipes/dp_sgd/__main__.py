from recipes.dp_sgd import main
from recipes.shell import one_line_errors

with one_line_errors("recipes.dp_sgd"):
    main()
