from recipes.private_prediction import main
from recipes.shell import one_line_errors

with one_line_errors("recipes.private_prediction"):
    main()
